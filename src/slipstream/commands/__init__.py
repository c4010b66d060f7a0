"""The commands of ``slipstream``, one file each, and what they share: ``common``, ``extras`` and ``connecting``.

A command's file has ``declare(parser)``, which gives the parser its options and returns what runs; its
name and its line in the overview stand in ``cli.COMMANDS``. It imports what it needs when it is chosen, so that
``slipstream --help`` comes at once.
"""
