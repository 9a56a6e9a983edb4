"""The sections of a run's report, one module each: from the run to what the section's template lays out, or None.

Here is decided what is said and how much of it (texts from data are held to the room that they have); how it is laid
out stands in the templates.
"""
