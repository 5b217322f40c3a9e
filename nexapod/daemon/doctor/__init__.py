"""`nexapod doctor`: what this machine promises, tried; what a daemon needs, looked at. Changes nothing that stays."""
