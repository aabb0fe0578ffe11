"""The tables of the paper: what is run (cells), how (sweep), and what came out (report)."""
