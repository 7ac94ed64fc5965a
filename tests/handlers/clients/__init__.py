"""Real clients against a live server. `make clients` installs them, `make soak` runs them.

install.py and packages/ say what is installed, installed.py finds it. session_table.py lists the sessions with the
trained miniature (sessions/, miniature.py). coding_tools.py has the coding tools, which also take turns with a script
(scripted.py).
"""
