"""Flower, for the workers of both engines, with the operator's console in it.

`server.py` reads the arguments, `serving.py` runs the process, `console.py` is Flower's application with our pages in
front of its own. A page is a module in `pages/`, with its template in `templates/`; `page.py` is the base of all.
"""
