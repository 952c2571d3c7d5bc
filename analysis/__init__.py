"""From the rows of run folders to tables, figures and a report; imports neither torch nor Ray."""
