"""The laboratory: pages whose figures are computed while the reader moves a slider.

``explorer`` and ``alignment`` compute and draw, in the browser as in the tests; ``calls`` is what the page's worker
calls; ``sphinx_lab`` puts the pages into the site, and ``fetch_runtime`` gets the Python that runs in the browser.
"""
