import logging

log = logging.getLogger("portrait_atelier")
