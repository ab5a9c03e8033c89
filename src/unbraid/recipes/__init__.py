"""Recipes: data sets, models, and one file a table or figure."""
