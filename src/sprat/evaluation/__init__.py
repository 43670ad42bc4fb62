"""Quality of a network: measured, recorded and compared."""
