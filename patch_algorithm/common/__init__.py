"""Small things that know no domain. Import them from their modules: some need Composer, others nothing."""
