"""Plain ASGI middlewares: what a request meets before any route is looked for."""
