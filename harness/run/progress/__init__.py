"""How far a run is: the live display, its log, its status."""
