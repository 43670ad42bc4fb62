"""A network in integers, and its C source for microcontrollers."""
