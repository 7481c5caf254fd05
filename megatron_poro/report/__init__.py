"""Looking at runs: where the time went, the HTML report, two runs side by side. Loads no torch."""
