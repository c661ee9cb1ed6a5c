"""Names of the first edition: each module here is found as ppe_npu.<name>, and gives what now stands elsewhere."""
