"""The report on a run, or several compared, from a checkout: `python -m analysis.report DIR [DIR ...]`."""

from raysweep.report.__main__ import main

if __name__ == "__main__":
    main(prog_name="python -m analysis.report")
