"""An HTTP server that speaks the protocols of OpenAI and Anthropic; needs the extra `server` (starlette, uvicorn).

In: HTTP requests. Out: answers of engines, as JSON or as server-sent events.
"""
