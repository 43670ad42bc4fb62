"""How good a network is: measured, recorded and compared."""
