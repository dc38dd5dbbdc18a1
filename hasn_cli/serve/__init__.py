"""`hasn serve`: a page and an HTTP interface that upscale pictures on this machine.

`server.py` listens; `security.py` and `connection.py` decide who may ask what, and how slowly; `app.py` answers;
`jobs.py` queues the pictures, and `engine.py` gives them to the batch layer, one by one.
"""
