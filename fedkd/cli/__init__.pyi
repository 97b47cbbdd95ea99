from .main import program as program
