"""One module for each tool whose configurations become recipes, and `common.py` for what several of them share."""
