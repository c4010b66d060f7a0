"""The HTTP frontend: OpenAI's API, translated to and from the public protocol.

It is no actor but a client of the gateway like any other, in a process of its own. A request passes through:

    build.py, server.py         the process: its socket, uvicorn, how it drains and ends
    transport/connection.py     one connection, within bounds of time, size and number
    entrance.py                 who is let in: keys, hosts, origins
    app.py                      the routes
    transport/uploads.py        bodies: how they arrive and are decoded
    bodies/requests.py          what a body may ask for
    service.py                  the way to the gateway
    endpoints/                  what each path answers with
    responses/, messages/       the newer API of OpenAI and that of Anthropic, over endpoints/chat.py
    transport/events.py         answers as streams of events
    tokens.py                   tokens and logprobs as OpenAI writes them
    errors.py                   every error in OpenAI's form
"""
