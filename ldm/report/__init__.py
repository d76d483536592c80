"""A run and all that it was made from: gathered from its files as plain facts, and laid out on one page."""
