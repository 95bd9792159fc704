"""Hands the shared fixtures to the contract's tests."""

from harness.contract.fixtures import calibration_texts, checkpoint_of

__all__ = ["calibration_texts", "checkpoint_of"]
