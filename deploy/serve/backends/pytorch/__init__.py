"""The backend named `pytorch`: AOTInductor and TorchScript archives through the torch of this environment."""
