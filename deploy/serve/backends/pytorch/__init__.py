"""The backend named `pytorch`: AOTInductor archives through the torch of this environment."""
