"""The HTTP face: OpenAI's API, translated to and from the public protocol.

No actor, but a client of the gateway like any other, in a process of its own. ``face.py`` is the process,
``app.py`` the routes; ``bodies.py`` says what may be asked, ``chat.py`` and ``completions.py`` what is answered.
"""
