"""What a person reads of a run: report.html for a browser or paper, and a few lines for the terminal."""
