"""Images and a compose file for versions of a repository, rendered and never built here."""
