"""Operations that graphs hold as one node, since they treat tokens by their place."""
