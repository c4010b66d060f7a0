"""The options of a service and of a router: declared once for command line, environment, file and keywords."""
