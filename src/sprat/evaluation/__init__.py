"""Evaluation of networks: measured, recorded and compared."""
