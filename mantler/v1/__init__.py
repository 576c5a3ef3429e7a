"""Stubs made from ``proto/mantler/v1`` by ``make proto``. Do not edit."""
