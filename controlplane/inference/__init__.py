"""Request records, from acceptance to retention, and the API for requests that are fetched later."""
