"""One module for each tool whose configurations become recipes, and `shared_words.py` for what several of them share."""
