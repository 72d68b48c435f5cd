import type { Document } from '../lib/document';
import type { Mistake } from './http';
import { ApiError, request } from './http';
import type { Schema } from '../lib/schema';

export interface PolicyVersion {
  version: number;
  document: Document;
  comment: string;
  author: string;
  published_at: string;
  state: string;
}

interface VersionPage {
  results: PolicyVersion[];
  next: string | null;
}

const ROOT = '/api/v1/policies';

export async function activePolicy(signal?: AbortSignal): Promise<PolicyVersion> {
  return (await request<PolicyVersion>(`${ROOT}/active`, signal ? { signal } : {})).body;
}

export async function policySchema(signal?: AbortSignal): Promise<Schema> {
  return (await request<Schema>(`${ROOT}/schema`, signal ? { signal } : {})).body;
}

export async function policyVersions(cursor: string | null, signal?: AbortSignal): Promise<VersionPage> {
  const path = cursor === null ? ROOT : `${ROOT}?cursor=${encodeURIComponent(cursor)}`;
  return (await request<VersionPage>(path, signal ? { signal } : {})).body;
}

export async function policyVersion(version: number): Promise<PolicyVersion> {
  return (await request<PolicyVersion>(`${ROOT}/${version}`)).body;
}

/** The document's mistakes; empty when it could be published. */
export async function validate(document: Document, signal: AbortSignal): Promise<readonly Mistake[]> {
  try {
    await request<unknown>(`${ROOT}/validate`, { method: 'POST', body: { document }, signal });
    return [];
  } catch (error) {
    if (error instanceof ApiError && error.status === 400) return error.mistakes;
    throw error;
  }
}

/** Publishes if `baseVersion` is still the active one; else rejects with status 412. */
export async function publish(document: Document, comment: string, baseVersion: number): Promise<PolicyVersion> {
  const ifMatch = `"v${baseVersion}"`;
  return (await request<PolicyVersion>(ROOT, { method: 'POST', body: { document, comment }, ifMatch })).body;
}

export async function rollBack(version: number, comment: string): Promise<PolicyVersion> {
  return (await request<PolicyVersion>(`${ROOT}/${version}/rollback`, { method: 'POST', body: { comment } })).body;
}
