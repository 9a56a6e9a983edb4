"""What tasks share whose models make one vector of a text."""
