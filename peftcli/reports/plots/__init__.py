"""Plots as inline SVG.

Text keeps its size at every width: places are percentages of the picture, while curves live in a nested picture that
stretches (`preserveAspectRatio="none"`) under lines that do not (`vector-effect`). Colours come from the page's style.
"""
