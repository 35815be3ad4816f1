"""The papers' metrics for people who have the weights: `python3 atelier.py evaluate` (docs/evaluation.md)."""
