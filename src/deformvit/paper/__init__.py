"""The paper's tables and figures of results: published beside measured, and the experiments that measure them."""
