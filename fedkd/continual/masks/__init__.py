"""Learners that give every task a mask over weights or units; `masks` has the mathematics."""
