"""The report of a run: report.html for a browser or paper, and text for the terminal."""
