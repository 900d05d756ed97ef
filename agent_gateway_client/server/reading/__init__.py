"""What the bodies and the routes of requests and responses say of a call. No text of a model or a user is kept."""
