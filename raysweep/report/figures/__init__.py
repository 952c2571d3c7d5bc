"""Figures: tables to matplotlib, no arithmetic beyond percent."""
