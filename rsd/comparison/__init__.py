"""Evaluations side by side: who is compared with whom, verdicts, published rates, and the page that shows them."""
