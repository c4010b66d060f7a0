"""What may stand in requests and in answers, as types, and the document at ``/openapi.json`` that is made of them."""
