"""A sweep on Ray: the one room that imports it.

`environment.prepare` comes before any other module here is imported, for Ray reads its
settings when it is.
"""
