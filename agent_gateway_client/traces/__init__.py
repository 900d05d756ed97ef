"""Joined traces for people: read from MLflow, reduced to what is worth showing, drawn as a tree or a waterfall."""
