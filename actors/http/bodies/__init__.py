"""The types of requests and answers, and the document at ``/openapi.json`` that is made of them."""
