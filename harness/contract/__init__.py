"""What everything that extends Quench must do, as tests that anybody can run on their own package.

``pytest --pyargs harness.contract`` tries every quantizer, metric and corpus
that installed packages add, and every corpus below ``QUENCH_CORPORA``;
``-k NAME`` tries one. Quench's own backends are held to the same functions.
"""
