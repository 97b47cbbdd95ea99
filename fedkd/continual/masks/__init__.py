"""Learners that give every task a mask over weights or units.

Start with `supsup`; `masks` has the mathematics.
"""
