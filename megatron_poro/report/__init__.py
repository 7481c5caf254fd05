"""Looking at runs: where the time went, the live view, the HTML report, two runs side by side. Loads no torch."""
