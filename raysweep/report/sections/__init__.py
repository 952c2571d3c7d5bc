"""The sections of the report, each a small function of the facts.

A section returns what to show, or None where its data are missing. To extend the report,
write one more and name it in `raysweep.report.page.SECTIONS`. Nothing in a section is HTML or Markdown: the
template and the summary escape what they print, for a run folder may hold any name.
"""
